# What the enrolment daemon on the head node may do: sign nodes' certificates, remember which instance a node is, and revoke
# the certificates of one that was replaced. Nothing of keys and grants.
# `secure-slurm vault init` replaces the words between @ signs.

# What may stand in a certificate, and for how long it is good, is the role's to say: names of nodes, a URI of this cluster.
path "@PKI@/sign/@PKI_ROLE@" {
  capabilities = ["update"]
  allowed_parameters = {
    "csr"                  = []
    "common_name"          = []
    "exclude_cn_from_sans" = [true]
    "uri_sans"             = []
    "ttl"                  = []
  }
}

# In the grants' mount, under names that no node can have: no list of grants shows them. The mount demands check-and-set.
path "@GRANTS@/data/_nodes/+" {
  capabilities = ["create", "update", "read"]
}
path "@GRANTS@/data/_instances/+" {
  capabilities = ["create", "update", "read"]
}
path "@GRANTS@/metadata/_instances/+" {
  capabilities = ["delete"]
}
path "@GRANTS@/data/_revoked/nodes" {
  capabilities = ["create", "update", "read"]
}

# Certificates that PKI does not store can only be revoked by a list of their serial numbers, which cert auth keeps.
path "@PKI@/issuer/default/sign-revocation-list" {
  capabilities = ["update"]
}
path "auth/@CERT@/crls/@CRL@" {
  capabilities = ["create", "update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
