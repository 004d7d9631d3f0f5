"""Row ids to samples on demand: in this process or in workers."""
