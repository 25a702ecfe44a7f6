"""``hardpix sweep``: a study of many runs that can be killed and started again."""
