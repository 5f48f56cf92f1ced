"""A local web page over records: rewards while they train, signs of reward hacking, groups, two record files compared.

Owns the reading of record files into one relation, the tables and marks that are computed from it, and their look in
Streamlit. Each page has a pure part (a store in, tables out) and a part that shows it. Needs grpo-plugin[view]; nothing
else of `reward_server` imports this room but its command.
"""
