"""Stands in for vLLM where servers are placed, lost and sent files, none of which is vLLM's; started by the same command."""
