"""Chat templates in the manner of well-known families, and tokenizers of one token per byte that have them."""

from tokenizers import AddedToken
from toys import byte_tokenizer
from transformers import PreTrainedTokenizerFast

_LOOP = "{% for message in messages %}"

CHATML = (
    _LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    _LOOP + "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WITH_TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML.replace(
    "{{ message.content }}",
    "{{ message.content }}{% for call in message.tool_calls %}"
    "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}",
)
LLAMA_3 = (
    "{{ bos_token }}" + _LOOP + "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + _LOOP + "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant, not ' + message.content) }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]{% else %} "
    "{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}" + _LOOP + "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = _LOOP + "<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
REASONING = (
    _LOOP + "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' and loop.last %}"
    "<think>\n{{ message.reasoning_content }}\n</think>\n"
    "{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3's: only of the last answer the reasoning is rendered."""
SPLITTING = CHATML.replace(
    "{{ message.content }}",
    "{% if '</think>' in message.content %}<think>{{ message.content.split('</think>')[0] | trim }}</think>\n"
    "{% endif %}{{ message.content.split('</think>')[-1] | trim }}",
)
"""As Qwen 3's: what a turn has before `</think>` is taken for its reasoning, wherever that was written."""
SPLITTING_MARKED = CHATML_MARKED.replace(
    "{% generation %}{{ message.content }}", "{% generation %}{{ message.content.split('</think>')[-1] | trim }}"
)
UNCLEAR = _LOOP + "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}the assistant says: {% endif %}"
"""What it renders before an answer is not how it renders the answer."""

_CONTROL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]

UNNAMED = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer with this chat template, and the control tokens of all families."""
    tokenizer = byte_tokenizer(add_end_token=False)
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken(token, special=True) for token in _CONTROL]})
    tokenizer.chat_template = template
    return tokenizer


def unnamed_tokenizer(*, takes_space: bool = False) -> PreTrainedTokenizerFast:
    """As Phi 3's: its control tokens are marked as special, and no name leads to them.

    Args:
        takes_space: whether they take the white space after them with them.
    """
    tokenizer = byte_tokenizer(add_end_token=False)
    tokenizer.add_tokens([AddedToken(token, special=True, rstrip=takes_space) for token in UNNAMED], special_tokens=False)
    tokenizer.chat_template = PHI_3
    return tokenizer
