"""Our verifiers behind the engines' signatures; import the module of the engine you need.

    from specbound.adapters.vllm import rejection_sample
    from specbound.adapters.sglang import tree_speculative_sampling_target_only
    from specbound.adapters.flashinfer import chain_speculative_sampling
    from specbound.adapters.tensorrt_llm import rejection_sampling_one_model
    from specbound.adapters.transformers import speculative_sampling

Each takes what the engine passes, asks the verifier named by `verifier` (default "block"), and gives back what the
engine expects. None imports the engine.
"""
