"""The process that draws. Drivers import `make` alone, which loads the rest in the worker."""
