"""`mlx-roster doctor`: what of this machine keeps a server from working, or from working well, and what to do about it.

`facts` says what is known, `gathering` finds it out, `findings` judges it, `report` shows it. Only `gathering` and
`hub` look at the machine. None of them imports mlx: a worker is asked.
"""
