"""`nvila find`: search a recording for an event."""
