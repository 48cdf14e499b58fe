"""Where models and data come from: the Hugging Face Hub, local files in any format, the demo."""
