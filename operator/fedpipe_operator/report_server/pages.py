"""The small pages of the report's server: the form to sign in, and what went wrong. Pure; without a script."""

from html import escape
from importlib.resources import files
from typing import Final

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
"""The content security policy of these pages."""

_STYLE: Final = files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def sign_in(namespace: str, name: str, problem: str, audience: str) -> str:
    """The form that asks for a token, for the report of this run; `problem` says what was wrong with the last one."""
    wanted = f" --audience {audience}" if audience else ""
    return _page(
        f"The report of {namespace}/{name}",
        f"""{f'<p class="bad" id="problem">{escape(problem)}</p>' if problem else ""}
<form method="post" autocomplete="off">
  <label for="token">Token</label>
  <input id="token" name="token" type="password" required autofocus autocomplete="off" spellcheck="false">
  <button>Sign in</button>
</form>
<p>Whoever may <code>get</code> the run may read its report. A token of a service account that may:</p>
<pre>kubectl create token ACCOUNT -n {escape(namespace)}{escape(wanted)}</pre>
<p class="soft">The browser keeps the token until it is closed or the token expires, and only over HTTPS or from localhost: if this form
comes back without a message, the connection is neither.</p>""",
    )


def message(title: str, text: str, *, reload_seconds: int = 0) -> str:
    """A page with one sentence, which asks again by itself if `reload_seconds` says when."""
    return _page(title, f"<p>{escape(text)}</p>", reload_seconds)


def start(text: str) -> str:
    """The page of the address without a run, from which one signs out."""
    form = '<form method="post" action="/sign-out"><button>Sign out</button></form>'
    return _page("Reports", f"<p>{escape(text)}</p>{form}")


def _page(title: str, body: str, reload_seconds: int = 0) -> str:
    reload = f'<meta http-equiv="refresh" content="{reload_seconds}">\n' if reload_seconds else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{reload}<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body><main><section>
<h1>{escape(title)}</h1>
{body}
</section></main></body>
</html>
"""
