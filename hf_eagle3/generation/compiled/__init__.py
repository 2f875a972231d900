"""Drafting and verification over static shapes, compiled as the target's own steps are."""
