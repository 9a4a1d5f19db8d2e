"""Rare token neurons: the arithmetic behind the numbered notebooks."""
