"""Its place alone matters: pytest puts this folder on the import path, so that tests can `import fake_openai`."""
