"""The model families that MindFormers trains here beyond its own: classes on its mcore GPTModel."""
