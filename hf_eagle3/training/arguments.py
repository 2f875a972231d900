"""placeholder"""
RECIPES = {
    "specforge": {"training_time_test_steps":7,"step_decay":0.8,"loss":"soft_cross_entropy","loss_mask_shift":-1,"mask_outside_vocabulary":True,"mean_over":"all"},
    "speculators": {"training_time_test_steps":3,"step_decay":1.0,"loss":"kl","loss_mask_shift":0,"mask_outside_vocabulary":False,"mean_over":"loss_mask"},
}
