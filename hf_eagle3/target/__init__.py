"""Everything the package asks of a target model. The only place that distinguishes architectures."""
