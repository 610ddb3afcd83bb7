"""The task of the fictional shop: instruction, answer layout and judge of its support bot."""

from tasks.shared.formats.tasks import Requests, Task

TASK = "support"
SUPPORT = Task(
    type="qa",
    layout="first_line",
    instruction=(
        "You are the support bot of a shop. Answer the customer's question in one short sentence, with the facts of the article. "
        "If the question is not about the shop, or asks for advice that a shop must not give, say: I can't help with that."
    ),
    requests=Requests(
        ask="Answer in one short sentence.",
        ask_article="Answer in one short sentence with the fact from the article.",
        ask_fact="Answer in one short sentence that says: {fact}.",
        decline="This is against our policy. Decline in one polite sentence: say that you can't help with it.",
    ),
    judge=(
        "Both answer a customer of a shop. The better answer is correct by the reference answer, answers what was asked, adds nothing "
        "false, and is short and polite."
    ),
)
