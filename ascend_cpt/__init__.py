"""Continued pretraining of Llama 2, Llama 3, Qwen2 and Qwen3 on Ascend NPUs with MindSpore and MindFormers."""

__version__ = "0.2.0"
