"""resumekit: start, resume and watch training runs. Import a module by its noun; nothing happens on import."""
