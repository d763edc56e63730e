"""Speed and accuracy, a command each: `python -m benchmarks.step --help`. What they share is form.py."""
