CONTAINED="contained"
def attack(submit): return {}
