// The secrets. A given value is written; one that is not given is left as it is; the `fresh` ones are made once.

param location string
param tags object
param vaultName string
param purgeProtection bool
param principalId string
param operatorPrincipalId string
param operatorPrincipalType string

@description('Values by name; an empty one is not written.')
@secure()
param given object

@description('Values by name for secrets that are neither given nor in the vault.')
@secure()
param fresh object

var secretsUser = '4633458b-17de-408a-b874-0445c86b69e6'
var secretsOfficer = 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7'
var givenNames = [
  'GITHUB-WEBHOOK-SECRET'
  'RUNNER-STATUS-TOKEN'
  'RUNNER-AGENT-KEY'
  'GITHUB-TOKEN'
  'GITHUB-APP-PRIVATE-KEY'
  'AZURE-CLIENT-SECRET'
  'SMTP-PASSWORD'
  'ALERT-WEBHOOK-URL'
]
var freshNames = ['GITHUB-WEBHOOK-SECRET', 'RUNNER-STATUS-TOKEN', 'RUNNER-AGENT-KEY']

resource vault 'Microsoft.KeyVault/vaults@2024-11-01' = {
  name: vaultName
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: purgeProtection ? true : null
  }
}

resource givenSecrets 'Microsoft.KeyVault/vaults/secrets@2024-11-01' = [for name in givenNames: if(!empty(given[name])) {
  parent: vault
  name: name
  properties: {
    value: given[name]
  }
}]

@onlyIfNotExists()
resource freshSecrets 'Microsoft.KeyVault/vaults/secrets@2024-11-01' = [for name in freshNames: if(empty(given[name])) {
  parent: vault
  name: name
  properties: {
    value: fresh[name]
  }
}]

resource readsSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, principalId, secretsUser)
  scope: vault
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsUser)
  }
}

resource setsSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(operatorPrincipalId)) {
  name: guid(vault.id, operatorPrincipalId, secretsOfficer)
  scope: vault
  properties: {
    principalId: operatorPrincipalId
    principalType: operatorPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsOfficer)
  }
}
