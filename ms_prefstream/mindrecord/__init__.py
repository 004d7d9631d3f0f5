"""The files of caches: the MindRecord format, that of Megatron-LM, and the manifest. Knows nothing of tasks."""
