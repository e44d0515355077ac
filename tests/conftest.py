"""Settings shared by all test folders."""

from hypothesis import settings

# The machine that runs the tests may be loaded; no test result depends on time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
