"""All that is asked of a target model, and the only place that looks at architectures."""
