"""What is written down, accepted and compared?"""
