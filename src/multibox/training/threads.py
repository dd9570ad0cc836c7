class ThreadPlan:
    def __init__(self, limit):
        pass

    def before_step(self):
        pass

    def after_step(self, s):
        pass
