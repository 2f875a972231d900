"""Kinds of draft beside EAGLE-3's, each a folder or file of its own, and their registrations."""
