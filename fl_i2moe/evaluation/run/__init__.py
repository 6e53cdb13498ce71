"""
Explanations of many samples, and what they are worth, in one folder. Each imports only those above it:

- `arguments`; `sample`: what is done for one; `figures`, `results`: what comes of all
- `explanations`: the whole, which continues where it was stopped
"""
