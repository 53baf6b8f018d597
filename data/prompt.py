"""How a question is put to a model that was not trained on this repository's corpus."""

RULE = (
    "Think first, between <think> and </think>. Then write the final answer, and nothing else, "
    "between <answer> and </answer>."
)


def ask(question):
    """-> prompt, a transcript for a base model, and user, what the user says in it, for --chat."""
    return {"prompt": f"User: {question}\n{RULE}\nAssistant:", "user": f"{question}\n{RULE}"}
