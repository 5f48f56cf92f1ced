"""The scorer `judge`: a model behind any OpenAI-compatible chat endpoint, asked for a verdict.

options     what a configuration may say             prompts     templates, and the fences around what is judged
scorer      the calls and the three modes            ranking     from comparisons and rankings to scores
verdicts    JSON schemas, and their strict reading   budget      what may be spent
"""

from reward_server.scorers.judge.options import JudgeOptions
from reward_server.scorers.judge.scorer import JudgeScorer

__all__ = ["JudgeOptions", "JudgeScorer"]
