"""Benchmarks whose answers a judge grades: MMHal-Bench, HallusionBench, MM-Vet, and the pairwise judgement."""
