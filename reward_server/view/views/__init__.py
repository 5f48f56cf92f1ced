"""What each view shows, in Streamlit. Knows nothing of files or SQL: the tables come from the rooms beside it."""
