"""Ordering and durability of one volume."""
