"""The task of the fictional shop: instruction, answer layout and judge of its support bot."""

from tasks.shared.formats.tasks import Task

TASK = "support"
SUPPORT = Task(
    type="qa",
    layout="first_line",
    instruction=(
        "You are the support bot of a shop. Answer the customer's question in one short sentence, with the facts of the article. "
        "If the question is not about the shop, or asks for advice that a shop must not give, say: I can't help with that."
    ),
    judge=(
        "Both answer a customer of a shop. The better answer is correct by the reference answer, answers what was asked, adds nothing "
        "false, and is short and polite."
    ),
)
