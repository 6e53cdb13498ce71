"""
Expert weights before people (I²MoE, appendix H). Each imports only those above it:

- `questionnaire`: its files; `page`: where it is answered
- `ratings`: what the answers say; `report`: as tables
- `study`: draws a questionnaire, sums its answers up
"""
