"""
Expert weights before people (I²MoE, appendix H). Each imports only those above it:

- `questionnaire`: its questions, key and page; `ratings`: what the answers say
- `study`: draws a questionnaire, sums its answers up
"""
