"""my_title"""
