"""The script that Streamlit runs for each visitor and each click; `app` has what it does."""

from reward_server.view import app

app.show()
