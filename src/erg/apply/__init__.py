"""What needs both a trained model and data: embed, score, picture, export."""
