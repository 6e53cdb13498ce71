"""
Explanations of many samples, and what they are worth, in one folder. Each imports only those above it:

- `arguments`; `inputs`: a model that can be explained, and the samples
- `sample`: what is done for one; `figures`, `page`, `results`: what comes of all
- `explanations`: the whole, which continues where it was stopped
"""
