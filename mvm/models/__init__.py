"""Models: one ViT, used by the autoencoder of pre-training and the classifier of fine-tuning."""
