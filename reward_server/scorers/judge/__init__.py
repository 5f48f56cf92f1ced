"""The scorer `judge`: a chat model behind any OpenAI-compatible endpoint, asked for a verdict on completions.

Owns the questions, the reading of verdicts and the scores that they come to. Knows nothing of HTTP: `engine` does.

options           the configuration                     prompts     templates, and the fences around what is judged
scorer            the calls and the three modes         ranking     from comparisons and rankings to scores
response_format   which form the endpoint takes         budget      what may be spent
verdicts          JSON schemas and their strict reading
"""

from reward_server.scorers.judge.options import JudgeOptions
from reward_server.scorers.judge.scorer import JudgeScorer

__all__ = ["JudgeOptions", "JudgeScorer"]
