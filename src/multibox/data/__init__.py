"""Files to samples to batches: readers, writers, images, augmentation, loading."""
