"""Membership inference: can an attacker tell forgotten samples from samples that were never trained on?"""
