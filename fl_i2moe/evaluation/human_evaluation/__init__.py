"""Expert weights before people (I²MoE, appendix H): a questionnaire, its key, and what the answers say."""
