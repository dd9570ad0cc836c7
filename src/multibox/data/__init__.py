"""Files to samples to batches: readers, writers, pictures, augmentation, loading."""
