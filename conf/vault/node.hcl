# What a compute node may do: use the keys whose name begins with its own name and "_", and read its own grants.
# The node's name is the common name of its TLS certificate. No node name may hold "_", so that no name is the beginning
# of another's. No list: a node cannot find out which jobs there are.
# `secure-slurm vault init` replaces the words between @ signs.

path "@TRANSIT@/datakey/plaintext/{{identity.entity.aliases.@CERT_ACCESSOR@.name}}_*" {
  capabilities = ["update"]
  allowed_parameters = {
    "bits" = []
  }
}

path "@TRANSIT@/decrypt/{{identity.entity.aliases.@CERT_ACCESSOR@.name}}_*" {
  capabilities = ["update"]
  allowed_parameters = {
    "ciphertext" = []
  }
}

path "@GRANTS@/data/{{identity.entity.aliases.@CERT_ACCESSOR@.name}}/+" {
  capabilities = ["read"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
