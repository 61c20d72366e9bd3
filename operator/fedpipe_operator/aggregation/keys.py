"""The keys of an adapter file, as peft writes them."""


def factor_keys(weight: str) -> tuple[str, str]:
    """The keys of (A, B) of the weight with this module path."""
    stem = f"base_model.model.{weight}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
