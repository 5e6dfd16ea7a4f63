"""Faults on purpose: killed processes, full disks, failing calls, too little memory; harness.py says what must hold."""
