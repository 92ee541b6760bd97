"""What a LiteLLM proxy needs to be governed by platform-api. See the README beside this package."""
