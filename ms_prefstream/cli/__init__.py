"""The console command `ms-prefstream`."""
