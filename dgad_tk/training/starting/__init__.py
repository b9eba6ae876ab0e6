"""What a student starts from: whether its network takes the images, and where its first weights come from."""
